"""What the benchmarks share: command line, timing, records, the peers' code, nets and batches to measure on."""
