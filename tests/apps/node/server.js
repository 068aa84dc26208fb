// A page that says who answers.
const express = require('express')

const app = express()
app.get('/', (request, response) => {
  response.send('Hello from the Node sample\n')
})
app.listen(process.env.PORT || 8080, '0.0.0.0')
