"""Whether two records of a run agree: leaves paired by structure, values judged by a tolerance."""
