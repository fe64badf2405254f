"""`aalnet deploy`: manifests edited, compared, applied and watched. Needs neither torch nor Ray."""
