"""The chat page in a real browser, against a server that only pretends to have a model."""
