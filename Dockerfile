# Every command of the project on a CPU, Linux on x86-64 or arm64. docs/installation.md has the
# commands.
FROM python:3.13.15-slim-trixie@sha256:7c61056e61ac89e852de05f3dc6fa51a6dd2181797bceed46aa725dd7cb2cd3b

SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
ENV VENV=/opt/venv ACCELERATOR=cpu PIP_NO_CACHE_DIR=1
WORKDIR /opt/noisy-student

# First what the installation reads, so that a change of the code does not install again.
COPY requirements.txt ./
COPY requirements ./requirements
COPY scripts/setup.sh scripts/install.sh ./scripts/
RUN . scripts/setup.sh

COPY . .
ENV PATH=/opt/noisy-student:$PATH
RUN useradd --create-home --uid 1000 student && install -d -o student /work
USER 1000
WORKDIR /work
CMD ["run_quickstart.sh", "--workdir=/work/quickstart"]
