"""Images to features on the store: plan, calibrate, extract, commit, snapshot, verify."""
