"""What is under test: the call, the containers it is made of, the module's state, the device it stands on."""
