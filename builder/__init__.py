"""A push comes in, a slug comes out: git receive, the build job, what runs inside the sandbox."""
