"""Bounded field types of events: what does not fit is refused before it is written, and when it is read."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A number of something, a size, a duration or a time: the unit is in the field's name."""
Label = Annotated[str, Meta(max_length=128)]
"""A short id or name: peer id, content id, account, request id."""
Reason = Annotated[str, Meta(max_length=512)]
"""Words for people; codes go into fields of their own."""
Hash = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""SHA-256, a salted commitment, or an Ed25519 public key."""
Signature = Annotated[bytes, Meta(min_length=64, max_length=64)]
Document = Annotated[bytes, Meta(max_length=16_384)]
"""Exact bytes somebody signed, kept as they came."""
SignedReceipts = Annotated[
    tuple[tuple[Document, Signature, Signature | None], ...], Meta(min_length=1, max_length=256)
]
"""(a receipt's exact bytes, the provider's signature, the consumer's once it signed), in the order of each channel."""
KeysShown = Annotated[tuple[tuple[Label, Document], ...], Meta(max_length=256)]
"""(peer, its encoded `KeysBound`) pairs."""
Labels = Annotated[tuple[Label, ...], Meta(max_length=256)]
Shares = Annotated[tuple[tuple[Label, Count], ...], Meta(max_length=256)]
"""(account, micro-units) pairs."""
LayerRanges = Annotated[tuple[tuple[Label, Count, Count], ...], Meta(max_length=256)]
"""(peer, first layer, end layer) triples; half-open."""
