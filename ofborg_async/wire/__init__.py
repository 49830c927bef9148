"""Bytes and model: strict on the way in, byte-exact on the way out (wire document)."""
