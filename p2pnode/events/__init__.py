"""The record: facts, their encoding, the Merkle tree and the log."""
