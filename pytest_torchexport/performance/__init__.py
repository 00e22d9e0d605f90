"""The stage `latency` of a check: cold start, speed beside eager and memory, each figure held against the budget."""
