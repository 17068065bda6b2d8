"""Methods for tests, reachable as tests.helpers.methods:NAME."""

from pipeline.methods import Clean, Method, Term


class Endless(Method):
    """A term that is not finite."""

    def term(self, clean: Clean) -> Term:
        return Term(clean.cross_entropy.mean() / 0)
