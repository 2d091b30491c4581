"""From scan files to this rank's batches of normalised amplitudes."""
