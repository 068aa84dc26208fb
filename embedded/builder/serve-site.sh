#!/bin/bash
# Written by epiniod: starts nginx on $PORT with the configuration beside this script.
set -eu
port=${PORT:-8080}
case $port in
*[!0-9]* | '')
    echo "PORT is '$port', which is not a number" >&2
    exit 1
    ;;
esac
mkdir -p /tmp/nginx
sed "s/@PORT@/$port/" "${BASH_SOURCE[0]%/*}/nginx.conf.in" >/tmp/nginx/nginx.conf
# stdout may belong to another user or be a socket, which cannot be opened by name; a pipe of our own can.
exec nginx -e stderr -c /tmp/nginx/nginx.conf > >(exec cat)
