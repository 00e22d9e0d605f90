"""Why a check did not end in `equivalent`: the cause and its evidence, the message, and what is kept to look at."""
