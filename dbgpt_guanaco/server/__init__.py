"""HTTP: the only layer that knows requests and frames."""
