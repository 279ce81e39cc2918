"""One script per peer, run in the peer's environment: standard library and the peer, no more."""
