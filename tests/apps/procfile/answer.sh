#!/bin/bash
# Reads the head of a request, and answers it.
while read -r line && [ "${line%$'\r'}" != "" ]; do :; done
body="Hello from the Procfile sample"
printf 'HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s\n' "$((${#body} + 1))" "$body"
