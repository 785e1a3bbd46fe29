const http = require("node:http");

const server = http.createServer((request, response) => {
  response.end("Hello from Davit!\n");
});
server.listen(process.env.PORT, "0.0.0.0");
process.on("SIGTERM", () => server.close(() => process.exit(0)));
