"""`aalnet tune` and `campaigns`, a module a command. Nothing else imports from here."""
