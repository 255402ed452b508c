"""Data sets, captions, and the samples that training draws from them."""
