// The ER query through fhir-kit-client: discover, search (GET and POST), follow pages, read.
// Usage: HIE_TOKEN=… node er_query.mjs <base url> <system|value>   (prints one JSON object)
import { Client } from 'fhir-kit-client';

const [base, identifier] = process.argv.slice(2);
const client = new Client({ baseUrl: `${base}/fhir`, bearerToken: process.env.HIE_TOKEN });

const smart = await client.smartAuthMetadata();
const statement = await client.capabilityStatement();
const searchParams = { 'patient.identifier': identifier, _count: 1 };
let page = await client.search({ resourceType: 'AllergyIntolerance', searchParams, options: { postSearch: true } });
const allergies = [];
let pages = 0;
while (page) {
  pages += 1;
  allergies.push(...(page.entry ?? []).filter((e) => e.search.mode === 'match').map((e) => e.resource));
  page = await client.nextPage({ bundle: page });
}
const again = await client.read({ resourceType: 'AllergyIntolerance', id: allergies[0].id });
let refusal;
try {
  await client.read({ resourceType: 'AllergyIntolerance', id: 'nothing' });
} catch (error) {
  refusal = { status: error.response?.status, type: error.response?.data?.resourceType };
}
console.log(
  JSON.stringify({
    tokenUrl: String(smart.tokenUrl),
    fhirVersion: statement.fhirVersion,
    pages,
    allergies: allergies.map((a) => a.code.text),
    again: again.code.text,
    refusal,
  }),
);
