"""From object patch to photons: probe, propagation, and patches on a common canvas."""
