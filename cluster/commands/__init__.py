"""The command line, a module a command. Nothing else imports from here."""
