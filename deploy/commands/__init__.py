"""`aalnet serve`, `sample` at an endpoint and `deploy`. Nothing else imports from here."""
