"""What a failure leaves: the folder, a script, a test, a line to paste."""
