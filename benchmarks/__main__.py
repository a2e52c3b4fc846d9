"""All benchmarks, one after the other."""

from benchmarks import inversion, threads

threads.main()
inversion.main()
