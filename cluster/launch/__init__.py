"""Places a run on Ray and keeps it going; the only room besides data/ that knows Ray."""
