"""`python -m keras_cait`: see `keras_cait.cli`."""

from keras_cait.cli import main

if __name__ == "__main__":
    main()
