# syntax=docker/dockerfile:1
# ReconX on CUDA: docs/containers.md. The toolkit is of the major version that torch on the default index is built with;
# gsplat compiles with it, here and not at the first call.
ARG CUDA=13.0.1
FROM nvidia/cuda:${CUDA}-devel-ubuntu24.04

# versions of packages are not pinned: Ubuntu keeps one of each, and a pin would stop the build when it changes
# hadolint ignore=DL3008
RUN apt-get update \
 && apt-get install -y --no-install-recommends python3.12 python3.12-dev python3.12-venv g++ \
 && rm -rf /var/lib/apt/lists/* \
 && userdel --remove ubuntu \
 && useradd --create-home --uid 1000 reconx \
 && mkdir /opt/reconx /work \
 && chown reconx:reconx /opt/reconx /work
USER 1000:1000
WORKDIR /opt/reconx
ENV PATH=/opt/reconx/venv/bin:${PATH} PYTHONUNBUFFERED=1 OMP_WAIT_POLICY=PASSIVE

# Requirements first, so that a change of the code downloads and compiles nothing again.
COPY --chown=reconx setup.cfg ./
RUN python3.12 -m venv venv \
 && python -c "import configparser; c = configparser.ConfigParser(); c.read('setup.cfg'); \
e = c['options.extras_require']; print(c['options']['install_requires'], e['gpu'], sep='\n')" > requirements.txt \
 && pip install --no-cache-dir -r requirements.txt \
 && python -c "import os, torch; t, b = torch.version.cuda, os.environ['CUDA_VERSION']; \
assert t and t.split('.')[0] == b.split('.')[0], f'torch is built for CUDA {t}, the image has {b}: give --build-arg CUDA'"

# GPUs by compute capability: 8.0 A100, 8.6 RTX 30, 8.9 RTX 40 and L40, 9.0 H100 and H200, 10.0 B200, 12.0 RTX 50.
# Each one makes the build longer. MAX_JOBS: compilers at once; lower where memory is short.
ARG ARCHS="8.0;9.0"
ARG MAX_JOBS=4
ENV TORCH_CUDA_ARCH_LIST=${ARCHS} TORCH_EXTENSIONS_DIR=/opt/reconx/kernels CUDA_HOME=/usr/local/cuda
RUN MAX_JOBS=${MAX_JOBS} python -c "from gsplat.cuda._backend import _C; assert _C is not None, 'gsplat did not compile'"

COPY --chown=reconx reconx_pl reconx_pl
COPY --chown=reconx configs configs
COPY --chown=reconx data/protocols data/protocols
COPY --chown=reconx pyproject.toml README.md LICENSE train.py evaluate.py ./
RUN pip install --no-cache-dir --no-deps . && reconx --help > /dev/null

# Data, weights and runs are the user's: mount a folder here. The image has no weights in it.
WORKDIR /work
ENTRYPOINT ["reconx"]
CMD ["--help"]
