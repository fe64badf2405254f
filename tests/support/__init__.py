"""What tests and benchmarks stand on: real servers, faults, small runs. Holds no test."""
