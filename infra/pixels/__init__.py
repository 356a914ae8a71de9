"""Pixel recipe 1: from encoded bytes to the square of uint8 RGB that every model is fed."""
