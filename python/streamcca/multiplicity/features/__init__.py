"""What can be read off models' features: linear probes, mixtures, diversity."""
