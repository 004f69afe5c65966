"""What enrolment decides, as pure code: who is a site, which login at the broker is good, which connection is over."""
