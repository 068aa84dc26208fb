#!/bin/bash
# Answers every connection with the page of answer.sh.
exec socat "TCP-LISTEN:${PORT:-8080},fork,reuseaddr" SYSTEM:./answer.sh
