"""What is true: tables, migrations and the operations on them. Faces check who you are, call one operation, render."""
