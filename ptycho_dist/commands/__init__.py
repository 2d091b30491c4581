"""One file a command: read its options, call one function of the package. `launch/` has a script
for each."""
