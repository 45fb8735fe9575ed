"""What sleep is compared with, each method behind one protocol (`protocol.Learner`)."""
