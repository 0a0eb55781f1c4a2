"""What the black-box suites share: the server as a child process, a signer of its own, raw HTTP."""
