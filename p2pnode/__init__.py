"""p2pnode: several devices, one language model, one sealed record."""

__version__ = "0.1.0"
