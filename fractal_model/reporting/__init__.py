"""What people look at: tables, figures and pages made from numbers and images alone."""
