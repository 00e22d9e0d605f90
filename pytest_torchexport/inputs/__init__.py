"""The inputs a model is checked on: domains (declared or derived), sizes, and the stream of calls drawn from them."""
