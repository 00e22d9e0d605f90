"""What a person reads about a failure or a refusal."""
