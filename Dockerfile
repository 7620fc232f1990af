# The programs of this project, to train and to export:
#   docker build --target training --tag keras-cait .
#   docker build --target training --build-arg ACCELERATOR=cuda --tag keras-cait .
#   docker build --target export --tag keras-cait-export .
ARG PYTHON=3.12.12

FROM python:${PYTHON}-slim-bookworm AS base
ENV HOME=/tmp \
    PIP_CONSTRAINT=/keras-cait/constraints.txt \
    PIP_NO_CACHE_DIR=1 \
    PYTHONUNBUFFERED=1
WORKDIR /keras-cait
# The files that choose the dependencies come first, so that a change of the code
# does not reinstall them.
COPY constraints.txt pyproject.toml setup.cfg README.md ./
COPY requirements requirements
COPY keras_cait/version.py keras_cait/__init__.py keras_cait/
COPY keras_cait/decoding/__init__.py keras_cait/decoding/

FROM base AS training
ARG ACCELERATOR=cpu
# CUDA's libraries are packages that TensorFlow names.
RUN case "$ACCELERATOR" in \
      cpu) extra= ;; \
      cuda) extra='[and-cuda]' ;; \
      *) echo "ACCELERATOR is cpu or cuda. Got $ACCELERATOR." >&2; exit 2 ;; \
    esac \
    && pip install -r requirements/training.txt "tensorflow$extra"
COPY keras_cait keras_cait
COPY training training
USER 65534:65534
CMD ["python", "-m", "training.train", "--help"]

FROM base AS export
# TensorFlow leaves oneDNN off on processors without VNNI.
ENV TF_ENABLE_ONEDNN_OPTS=1
# KubeRay submits jobs to the dashboard of Ray.
RUN pip install -r requirements/export.txt "ray[default]"
COPY keras_cait keras_cait
COPY export export
USER 65534:65534
CMD ["python", "-m", "export", "--help"]
