# What runs start in, of pools of Docker containers and Jobs of Kubernetes: docs/operations.md.
# For NPUs: --build-arg BASE=a Debian or Ubuntu with CANN and Python 3.11 --build-arg EXTRAS=mpi,npu,examples
ARG BASE=python:3.11-slim
FROM ${BASE}
ARG EXTRAS=mpi,nvidia,examples
RUN apt-get update && apt-get install --yes --no-install-recommends git bubblewrap && \
    rm -rf /var/lib/apt/lists/*
ENV TRAINJOB_HOME=/opt/trainjob
WORKDIR ${TRAINJOB_HOME}
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY trainjob trainjob
# The torch of the base, where it has one, is the build for its driver.
RUN if python -c "import torch" 2>/dev/null; then sed -i /^torch==/d constraints.txt; fi && \
    python -m pip install --no-cache-dir --constraint constraints.txt --editable ".[${EXTRAS}]"
COPY blocks blocks
COPY flows flows
COPY tasks tasks
COPY examples examples
# The input of the form as it is, before anybody has changed it.
RUN python examples/make_dataset.py .demo/datasets/digits
