"""Who computes where and when: GPU leases on one machine, and what fits a budget."""
