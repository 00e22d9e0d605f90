"""How fast and how large: budgets, timing in random turns, the decision, peak memory."""
