"""Tables, figures and pages for people, made only from numbers and images."""
