"""What the benchmarks share: samples, results, payloads, servers and robots."""
