"""What a person sees of a run: terminal and report. Reads, never writes a run's files."""
