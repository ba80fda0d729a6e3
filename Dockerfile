FROM python:3.11-slim
WORKDIR /opt/mosa
COPY . .
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu -c constraints.txt . \
    && useradd --create-home mosa && mkdir /work && chown mosa /work
USER mosa
WORKDIR /work
ENTRYPOINT ["mosa"]
