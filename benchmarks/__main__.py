"""All benchmarks, one after the other."""

from benchmarks import inversion, sampling, threads

threads.main()
inversion.main([])
sampling.main([])
