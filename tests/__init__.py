"""Quick tests here, by package and module; `slow` starts Ray or servers; `proof` takes hours."""
