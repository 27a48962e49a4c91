"""The wire: libp2p over QUIC and our own protocols on it."""
